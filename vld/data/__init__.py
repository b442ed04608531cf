"""From image folders to batches on the device."""
