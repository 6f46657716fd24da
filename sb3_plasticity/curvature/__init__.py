"""Curvature spectra: Hessian, generalised Gauss-Newton (GGN) and Kronecker-factored (KFAC)."""
