"""Lines as crawled text has them: what tokenizers, formats and special pieces trip over."""

TEMPLATES = [
    *("<s>{}</s>", "<unk> {}", "<pad> {}", "<mask> {}", "[MASK] {}", "<2de> {}", "__de__ {}"),
    *(">>{}<< da", ">>de<< {}", "<<{}>>", "@@ {}", "{} ||| {}", "%s {}", "{}\\n"),
    *("&amp; {} &lt;b&gt;", "„{}“", "{}…", "½ {}", "5 m² {}", "ﬁ {}", "№ 5 {}", "™ {}"),
    *("１２３ {}", "Ａｂｃ {}", "é {}", "e\u0301 {}", "می\u200cخواهم {}", "😀 {}", "👩\u200d👧 {}"),
    *("wort\u00adteil {}", "null\u200bbreite {}", "\ufeff{}", "\u202e{}\u202c", "\ud7ff{}"),
    *("\t{}", "{}  doppelt  ", "  {}", "{}\u00a0!", "{}\u2028weiter", "{}\u0085x", "a\u000bb {}"),
    "\U0010ffff{}",
]


def messy(text: str) -> list[str]:
    """Each template around a text; none holds a line feed."""
    return [template.replace("{}", text) for template in TEMPLATES]
