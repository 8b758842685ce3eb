"""What is trained: backbones, branches with their heads, and what they see."""
