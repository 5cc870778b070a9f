"""What NYUD-v2 and PASCAL-Context share: choices, losses and tasks as ATRC, InvPT and TaskPrompter have them."""
