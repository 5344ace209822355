"""What was answered once is not asked again."""
