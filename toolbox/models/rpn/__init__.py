"""Region proposal network."""

from toolbox.models.rpn.anchors import AnchorGenerator
from toolbox.models.rpn.head import ConvRPNHead
from toolbox.models.rpn.rpn import RPN, ProposalCounts

__all__ = ["RPN", "AnchorGenerator", "ConvRPNHead", "ProposalCounts"]
