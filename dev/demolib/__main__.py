"""Second half of `dev/demo`, under the Python of target/venv."""
import sys

from .run import main

sys.exit(main())
