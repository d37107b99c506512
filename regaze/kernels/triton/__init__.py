"""Fused attention kernels in Triton. They are imported when first used: regaze works without Triton."""
