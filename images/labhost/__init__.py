"""The lab host: a Debian GPU host inside one QEMU process, where everything but the GPU's silicon is real.

`python -m images.labhost` builds it, boots it and takes it down. Tests use `lab.LabHost`.
"""
