"""The probe guest: a bootable image of at most 20 MiB that tells from inside what a tenant's machine is like.

Whoever needs the image calls `images.probe.image.ensure_image`. The guest's own programs are in `src/`, the
protocol it speaks is in README.md.
"""
