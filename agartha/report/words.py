"""Quantities as a person writes them."""


def duration(seconds: float) -> str:
    """
    >>> [duration(seconds) for seconds in (4.26, 575, 7260)]
    ['4.3 s', '9 min 35 s', '2 h 1 min']
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def dollars(amount: float) -> str:
    """
    >>> [dollars(amount) for amount in (0, 0.016, 12.5)]
    ['$0', '$0.016', '$12.50']
    """
    return "$0" if amount == 0 else f"${amount:.2f}" if amount >= 1 else f"${amount:.2g}"


def energy(joules: float) -> str:
    """
    >>> energy(36_000)
    '36.0 kJ (10.0 Wh)'
    """
    return f"{joules / 1e3:,.1f} kJ ({joules / 3600:,.1f} Wh)"


def memory(size_bytes: float) -> str:
    """
    >>> memory(3 * 2**29)
    '1.5 GiB'
    """
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def percent(share: float) -> str:
    """
    >>> percent(0.1234)
    '12.3%'
    """
    return f"{100 * share:.1f}%"


def flops(count: float) -> str:
    """
    >>> flops(3.21e14)
    '3.21e+14'
    """
    return f"{count:.3g}"


def whole(count: float) -> str:
    """
    >>> whole(1234567)
    '1,234,567'
    """
    return f"{count:,.0f}"
