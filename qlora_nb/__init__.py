"QLoRA fine-tuning inside Jupyter"
__version__ = '0.1.0'
