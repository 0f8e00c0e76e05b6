"""From a photo file to a restored photo file, without the training code."""
