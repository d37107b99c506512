"""HallusionBench: yes/no questions on figures and edited images."""
