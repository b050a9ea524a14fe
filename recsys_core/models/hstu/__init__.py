"""HSTU: a causal sequence model with pointwise SiLU attention (Zhai et al. 2024, arXiv 2402.17152)."""

from recsys_core.models.hstu.config import HSTUConfig
from recsys_core.models.hstu.model import HSTU
from recsys_core.models.hstu.ranking import RankingReport, ranking_report

__all__ = ["HSTU", "HSTUConfig", "RankingReport", "ranking_report"]
