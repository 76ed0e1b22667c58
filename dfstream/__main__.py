"""``python -m dfstream`` is the command line."""

from dfstream.cli import main

if __name__ == "__main__":
    main()
