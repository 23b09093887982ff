"""``python -m pixelize``, for where the script is not on the path."""

from pixelize.command_line import main

if __name__ == "__main__":
    main()
