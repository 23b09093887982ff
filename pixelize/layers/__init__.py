"""The layers of Gao et al., their functional forms, the gate between eq. 2 and eq. 3, optimizer groups."""
