"""The names and units of the facts, as the sentences have them."""

FACTS = {
    "thickness_mm": ("slice thickness", " mm"),
    "spacing_mm": ("slice spacing", " mm"),
    "pixel_mm": ("pixel size", " mm"),
    "kv": ("tube voltage", " kV"),
    "mas": ("exposure", " mAs"),
    "age_years": ("age", " years"),
    "hu_air": ("air around the patient", " HU"),
    "hu_trachea": ("air in the windpipe", " HU"),
    "hu_lung": ("lung density", " HU"),
    "noise_hu": ("noise", " HU"),
    "lung_volume_ml": ("lung volume", " mL"),
    "probability": ("probability", ""),
    "turnaround_s": ("turnaround", " s"),
    "queue_s": ("wait for a worker", " s"),
    "scanner": ("scanner", ""),
    "kernel": ("kernel", ""),
    "software": ("software", ""),
    "sex": ("sex", ""),
}


def name(fact: str) -> str:
    """A fact's name in a sentence."""
    return FACTS[fact][0]


def amount(fact: str, value: float) -> str:
    """A value of a fact with its unit: three digits, or whole from 1000 on."""
    return f"{value:.0f}{FACTS[fact][1]}" if abs(value) >= 100 else f"{value:.3g}{FACTS[fact][1]}"


def studies(count: int) -> str:
    """A number of studies."""
    return f"{count} stud{'y' if count == 1 else 'ies'}"


def start(text: str) -> str:
    """A text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]
