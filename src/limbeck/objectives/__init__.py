"""What the student minimises: head statistics (`head`), losses per token (`divergences`), the one reduction (`objective`)."""
