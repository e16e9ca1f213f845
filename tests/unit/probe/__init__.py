"""Tests of the probe image's recipe and of the guest's C code, without booting it."""
