"`python -m qlora_nb`"
import sys

from .ui.cli import main

if __name__=='__main__': sys.exit(main())
