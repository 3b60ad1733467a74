"""Numbers that the paper prints, for comparison: Deng et al., ArcFace, CVPR 2019 (CASIA-WebFace, ResNet50).

Compared, number by number, with a transcription of the paper's text and tables.
"""

from typing import Any

SOURCE = "Deng et al., ArcFace, CVPR 2019: CASIA-WebFace, ResNet50"
# Table 2: verification accuracy in percent on LFW, CFP-FP and AgeDB-30.
TABLE_2 = {
    "softmax": (99.08, 94.39, 92.33),
    "norm_softmax": (98.56, 89.79, 88.72),
    "sphereface": (99.11, 94.38, 91.70),
    "cosface": (99.51, 95.44, 94.56),
    "arcface": (99.53, 95.56, 95.15),
    "triplet": (98.98, 91.90, 89.98),
}
# Table 3, in degrees: W-EC, W-Inter, then Intra and Inter on the training data (1) and on LFW (2).
TABLE_3: dict[str, dict[str, Any]] = {
    "norm_softmax": {"w_ec": 44.26, "w_inter": 69.66, "intra": (50.50, 33.97), "inter": (59.23, 65.60)},
    "arcface": {"w_ec": 14.29, "w_inter": 71.61, "intra": (38.45, 28.05), "inter": (65.83, 66.55)},
    "norm_softmax+intra": {"w_ec": 8.83, "w_inter": 31.34, "intra": (17.50, 12.94), "inter": (24.07, 26.28)},
    "norm_softmax+inter": {"w_ec": 46.85, "w_inter": 75.66, "intra": (52.74, 35.38), "inter": (62.40, 67.90)},
    "triplet": {"w_ec": None, "w_inter": None, "intra": (41.19, 27.42), "inter": (50.23, 55.94)},
}
