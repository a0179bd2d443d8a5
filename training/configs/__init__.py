"""Configurations for `accelerate launch --config_file`: several GPUs of one machine."""
