"""What the student minimises: head statistics (`head`, `chunks`), losses per token (`divergences`, `pairs`, `hidden`), an
objective's parts and their factors (`parts`, `schedule`), the one reduction (`objective`).
"""
