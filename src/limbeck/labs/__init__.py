"""Small laboratories for the capacity gap: where a better teacher makes a worse student (arXiv 2502.08606, Appendix C)."""
