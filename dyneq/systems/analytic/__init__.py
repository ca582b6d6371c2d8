"""Systems whose spectra, cycles or exponents are known without computing them.

Each is a class whose arguments all have defaults; the name in lower case is the same class, as it is typed on the
command line: ``dyneq spectrum dyneq.systems.analytic:lorenz``.
"""

from dyneq.systems.analytic.base import AnalyticFlow, AnalyticMap, AnalyticSystem
from dyneq.systems.analytic.linear import GradientFlow, Grcar, Jordan, LinearFlow, LinearMap, RotationMap, Shear
from dyneq.systems.analytic.lorenz import Lorenz
from dyneq.systems.analytic.maps import Henon, Logistic, Tent
from dyneq.systems.analytic.oscillators import Brusselator, FitzHughNagumo, StuartLandau, VanDerPol
from dyneq.systems.analytic.products import gaussian_exponent_errors, gaussian_exponents, gaussian_matrices
from dyneq.systems.analytic.stepping import FlipFlow, HopfNormalForm

brusselator = Brusselator
fitzhugh_nagumo = FitzHughNagumo
flip = FlipFlow
gradient = GradientFlow
grcar = Grcar
henon = Henon
hopf_normal_form = HopfNormalForm
jordan = Jordan
logistic = Logistic
lorenz = Lorenz
rotation = RotationMap
shear = Shear
stuart_landau = StuartLandau
tent = Tent
van_der_pol = VanDerPol

__all__ = [
    "AnalyticFlow",
    "AnalyticMap",
    "AnalyticSystem",
    "Brusselator",
    "FitzHughNagumo",
    "FlipFlow",
    "GradientFlow",
    "Grcar",
    "Henon",
    "HopfNormalForm",
    "Jordan",
    "LinearFlow",
    "LinearMap",
    "Logistic",
    "Lorenz",
    "RotationMap",
    "Shear",
    "StuartLandau",
    "Tent",
    "VanDerPol",
    "brusselator",
    "fitzhugh_nagumo",
    "flip",
    "gaussian_exponent_errors",
    "gaussian_exponents",
    "gaussian_matrices",
    "gradient",
    "grcar",
    "henon",
    "hopf_normal_form",
    "jordan",
    "logistic",
    "lorenz",
    "rotation",
    "shear",
    "stuart_landau",
    "tent",
    "van_der_pol",
]
