"""Lines as crawled text has them: what tokenizers, formats and special pieces trip over."""

TEMPLATES = [
    *("<s>{}</s>", "<unk> {}", "<pad> {}", "<mask> {}", "[MASK] {}", "<2de> {}", "__de__ {}"),
    *(">>{}<< da", ">>de<< {}", "<<{}>>", "@@ {}", "{} ||| {}", "%s {}", "{}\\n"),
    *("&amp; {} &lt;b&gt;", "„{}“", "{}…", "½ {}", "5 m² {}", "ﬁ {}", "№ 5 {}", "™ {}"),
    *("１２３ {}", "Ａｂｃ {}", "é {}", "e\u0301 {}", "می\u200cخواهم {}", "😀 {}", "👩\u200d👧 {}"),
    *("wort\u00adteil {}", "null\u200bbreite {}", "\ufeff{}", "\u202e{}\u202c", "\ud7ff{}"),
    *("\t{}", "{}  doppelt  ", "  {}", "{}\u00a0!", "{}\u2028weiter", "{}\u0085x", "a\u000bb {}"),
    # special pieces alone, at ends, and as text of their bytes
    *("</s> {}", "{} </s>", "<s>", "▁{}▁", "<0x0A> {}", "{}<0x0D>", "\\ud800 {}", "<2en>{}"),
    # control characters, and code points that are nobody's
    *("{}\r", "\r{}\r", "\x00{}", "\x1b[31m{}\x07", "{}\u2029", "\ufffd {}", "\ue000{}"),
    *("\U0010ffff{}", "{} \uffff", "\u200b", "\ufeff"),
    # both directions in one line, letters with cases of their own, stacked marks
    *("\u200f{}\u200e", "שלום {}", "\u2067مرحبا {}\u2069", "ﷲ {}", "ßẞ {}", "Iİıi {}"),
    *("Vi\u1ec7t {}", "Vie\u0323\u0302t {}", "{}\u0300\u0301\u0302", "Ø\u0338 {}"),
    *("한{}", "\u1112\u1161\u11ab{}", "ᏣᎳᎩ {}", "ߒߞߏ {}", "１２{}ＡＢ", "{}\u3000{}"),
    # what is one sign and many code points
    *("👨\u200d👩\u200d👦", "1\ufe0f\u20e3 {}", "🇩🇪{}", "☺\ufe0e {}"),
    "🏴\U000e0067\U000e0062\U000e007f {}",
]
BLANK = ["", " ", "\t", "\u00a0", "\u3000", "\u2028"]


def messy(text: str) -> list[str]:
    """Each template around a text, and lines of white space; none holds a line feed."""
    return [template.replace("{}", text) for template in TEMPLATES] + BLANK
