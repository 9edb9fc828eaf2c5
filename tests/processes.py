"""What tests ask about processes."""


def runs(pid: int) -> bool:
    """Whether there is such a process and it is no zombie that nobody asks for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
