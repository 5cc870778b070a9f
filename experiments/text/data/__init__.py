"""What is trained on in text tasks: files, sentences as token ids, and how batches are drawn from them."""
