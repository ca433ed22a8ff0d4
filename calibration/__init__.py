"""Images: data sets, selection, preprocessing, loading."""
