"""How good a model is: predictions with known labels in, metrics, plots and a page out.

`predictions` reads files, `metrics` and `intervals` compute, `assessment` puts the numbers together, `comparison`
sets a second model beside the first, `plots` and `page` draw. scikit-learn and matplotlib are the optional extra
`evaluate`; nothing here imports them before they are used, and `prevalence` needs neither them nor numpy.
"""
