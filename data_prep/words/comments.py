"""UniProt's comments as statements about a protein: what can be said after "it", and places after "in".

UniProt leaves the subject out: `Binds ATP.`, `Involved in DNA repair.`, `Component of the exocyst.` A sentence that
fits none of its habits is left alone rather than bent.
"""

import re

from data_prep.words.phrases import article

LONGEST = 400  # characters of a sentence taken from a comment
SENTENCE = re.compile(r"(?<=[\w)\]]{2})\.\s+(?=[A-Z])")
FORM = re.compile(r"\[[^\]]*\]: |[\w*/ .,()'-]{2,80}?: (?=[A-Z])")  # `[Isoform 2]: `, in old releases `Isoform 2: `
ASIDE = re.compile(r"^\((?:Microbial infection|Probable|Potential)\)\s*")
PREPOSITION = "of|for|to|that|which|with|in|from|involved|required|responsible|associated|acting|belonging|specific"
ROLE = (
    "protein|receptor|component|subunit|factor|enzyme|ligase|kinase|phosphatase|protease|peptidase|inhibitor|activator|"
    "repressor|regulator|donor|acceptor|transporter|channel|chaperone|hormone|toxin|ligand|carrier|antigen|pigment|"
    "hydrolase|transferase|synthase|reductase|oxidase|helicase|nuclease|endonuclease|exonuclease|GTPase|ATPase"
)
VERBLESS = r"(?!(?:the|this|these|an?|is|are|was|has|may|can|and) )"
NOUN = re.compile(rf"(?:{VERBLESS}[\w/+'-]+ ){{0,4}}?(?:[\w/+'-]*-)?(?:{ROLE})(?: (?:{PREPOSITION})\b.*|)", re.I)
STATE = re.compile(
    r"(?:(?:Probably|Possibly|Also|Not|Directly) )?(?:Involved|Required|Essential|Necessary|Important|Responsible|"
    r"Implicated|Able|Capable|Thought|Known|Needed|Active|Associated|Found|Located|Crucial|Critical|Indispensable|"
    r"Part of|One of the)\b"
)
VERB = re.compile(
    r"(?:(?:Specifically|Negatively|Positively|Directly|Also|Probably|Mainly|Preferentially|Reversibly) )?"
    r"(?:Acts|Activates|Adds|Affects|Allows|Assembles|Assists|Associates|Attaches|Binds|Blocks|Carries|Catalyzes|"
    r"Catalyses|Causes|Cleaves|Confers|Constitutes|Contributes|Controls|Converts|Cooperates|Couples|Degrades|"
    r"Dephosphorylates|Destabilizes|Determines|Directs|Displays|Drives|Enables|Encodes|Enhances|Ensures|Exhibits|"
    r"Facilitates|Forms|Functions|Generates|Has|Helps|Hydrolyzes|Inactivates|Increases|Induces|Inhibits|Initiates|"
    r"Interacts|Is|Links|Maintains|Mediates|Methylates|Modulates|Oxidizes|Participates|Phosphorylates|Plays|"
    r"Possesses|Prevents|Produces|Promotes|Protects|Provides|Recognizes|Recruits|Reduces|Regulates|Releases|Removes|"
    r"Represses|Restricts|Seems|Serves|Shows|Stabilizes|Stimulates|Suppresses|Synthesizes|Targets|Transfers|"
    r"Transports|Triggers|Ubiquitinates|Appears|May|Might|Can|Could|Must|acts|activates|binds|catalyzes|cleaves|"
    r"controls|forms|induces|inhibits|interacts|mediates|modulates|phosphorylates|promotes|recognizes|regulates)\b"
)
WHOLE = re.compile(
    r"(?:The|This) (?:protein|enzyme|receptor|subunit|hormone|toxin|kinase|channel|transporter|peptide|factor)\b"
    r".*\b(?:is|was|has|can|may|acts|binds|plays|regulates|functions|catalyzes|mediates)\b"
)
NAME = re.compile(r"[A-Z][A-Z0-9]|[A-Z]\d|[A-Z]-|[A-Z][a-z]+\d|(?:Golgi|Cajal|Ca|Na|Mg|Zn|Rho|Ras|Rab)\b")
WHERE = re.compile(r"Subcellular location: (.+?)\.(?: |$)")
MANNER = re.compile(r".*membrane protein|.*anchor.*|.* side")  # how, not where
WITHIN = {"perinuclear region", "cell cortex"}  # which of a place are said with it


def statements(comment: str) -> list[str]:
    """The sentences of a function comment that can be said of the protein: `binds ATP`, `is involved in DNA repair`.

    A sentence that has its subject (`This protein is …`) is given as it is, with its capital. What is said of a form
    (isoform, chain, allele) is not said of the protein.
    """
    if FORM.match(comment):
        return []
    found = []
    for sentence in SENTENCE.split(comment.strip().rstrip(".")):
        said = ASIDE.sub("", sentence.strip())
        if not 15 <= len(said) <= LONGEST or said.count("(") != said.count(")"):
            continue
        if WHOLE.match(said):
            found.append(said)
        elif VERB.match(said):
            found.append(small(said))
        elif STATE.match(said):
            found.append(f"is {small(said)}")
        elif NOUN.fullmatch(said):
            found.append(f"is {article(small(said))} {small(said)}")
    return found


def locations(text: str) -> list[str]:
    """`the nucleus`, `the cell membrane as a multi-pass membrane protein`, `secreted`: of the text that the UniProt
    source makes of a subcellular location. What is said of a form is not said of the protein.
    """
    told = WHERE.match(text)
    found = []
    for part in told[1].split("; ") if told else ():
        if ": " in part or len(part) > 120:
            continue
        words = [small(word) for word in part.split(", ")]
        path = [word for word in words if not MANNER.fullmatch(word)]
        manner = _manner([word for word in words if MANNER.fullmatch(word)])
        if path[:1] == ["secreted"]:
            found.append("secreted")
        elif path:
            place = f"{path[-1]} of the {path[-2]}" if path[-1] in WITHIN and len(path) > 1 else path[-1]
            found.append((place if place.startswith("host") else f"the {place}") + manner)
    return list(dict.fromkeys(found))


def _manner(words: list[str]) -> str:
    """` as a multi-pass membrane protein`, ` (lipid-anchor, cytoplasmic side)`."""
    if not words:
        return ""
    return f" as {article(words[0])} {words[0]}" if words[0].endswith("protein") else f" ({', '.join(words)})"


def small(text: str) -> str:
    """Without its capital, unless that is part of a name (`ATP-binding`, `E3 ligase`, `Golgi apparatus`, `P-body`)."""
    return text if NAME.match(text) else text[:1].lower() + text[1:]
