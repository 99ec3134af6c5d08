"""What a study leaves behind: the choice, test scores, an exported model."""
