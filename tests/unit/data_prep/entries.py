"""Flat-file entries made for tests: a whole one, another, and one whose checksum is wrong."""

from Bio.SeqUtils.CheckSum import crc64 as slow_crc64

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV"
ENTRY = """ID   TEST_HUMAN              Reviewed;          70 AA.
AC   P12345; Q99999;
AC   Q88888;
DT   21-JUL-1986, integrated into UniProtKB/Swiss-Prot.
DT   21-JUL-1986, sequence version 1.
DT   29-MAY-2024, entry version 200.
DE   RecName: Full=Test protein {ECO:0000303|PubMed:1};
DE            Short=TP;
DE            EC=2.7.11.1 {ECO:0000269|PubMed:1};
DE   AltName: Full=Other name;
DE   Flags: Precursor; Fragment;
GN   Name=TST {ECO:0000312|HGNC:HGNC:1}; Synonyms=T1, T2;
OS   Homo sapiens (Human).
OC   Eukaryota; Metazoa.
OX   NCBI_TaxID=9606 {ECO:0000312|Proteomes:UP000005640};
RN   [1]
RP   NUCLEOTIDE SEQUENCE.
RX   PubMed=1;
RA   Doe J.;
RL   Nature 1:1-2(1986).
CC   -!- FUNCTION: Binds ATP (PubMed:123, PubMed:456). An ATP-
CC       dependent motor. {ECO:0000269|PubMed:123}.
CC   -!- CATALYTIC ACTIVITY:
CC       Reaction=ATP + H2O = ADP + phosphate + H(+); Xref=Rhea:RHEA:13065,
CC         ChEBI:CHEBI:15377; EC=2.7.11.1; Evidence={ECO:0000269|PubMed:1};
CC   -!- SUBUNIT: Monomer.
CC   -!- SUBCELLULAR LOCATION: [Isoform 2]: Cell membrane {ECO:0000305};
CC       Multi-pass membrane protein {ECO:0000305}. Nucleus. Note=Moves.
CC   -!- ALTERNATIVE PRODUCTS:
CC       Event=Alternative splicing; Named isoforms=3;
CC       Name=1;
CC         IsoId=P12345-1; Sequence=Displayed;
CC       Name=2;
CC         IsoId=P12345-2, Q88888-1; Sequence=VSP_000001, VSP_000002;
CC       Name=3;
CC         IsoId=Q11111-1; Sequence=External;
DR   PDB; 1ABC; X-ray; 2.00 A; A=1-70.
DR   Ensembl; ENST00000000001.1; ENSP00000000001.1; ENSG00000157764.14. [P12345-1]
DR   GO; GO:0005524; F:ATP binding; IEA:UniProtKB-KW.
DR   GO; GO:0005886; C:plasma membrane; IDA:UniProtKB.
PE   1: Evidence at protein level;
KW   ATP-binding {ECO:0000256|ARBA:ARBA00022840,
KW   ECO:0000256|HAMAP-Rule:MF_00123}; Membrane.
FT   VAR_SEQ         2..4
FT                   /note="KTA -> WW (in isoform 2)"
FT                   /id="VSP_000001"
FT   VAR_SEQ         61..70
FT                   /note="Missing (in isoform 2)"
FT                   /id="VSP_000002"
SQ   SEQUENCE   70 AA;  7800 MW;  {checksum} CRC64;
     MKTAYIAKQR QISFVKSHFS RQLEERLGLI EVQAPILSRV GDGTQDNLSG AEKAVQVKVK
     ALPDAQFEVV
//
""".replace("{checksum}", slow_crc64(SEQUENCE).removeprefix("CRC-"))
OTHER = ENTRY.replace("P12345", "P54321").replace("Q99999", "Q77777").replace("TEST_", "OTHER_")
BROKEN = ENTRY.replace("AC   P12345", "AC   P66666").replace("     MKTAYIAKQR", "     MKTAYIAKQQ")
