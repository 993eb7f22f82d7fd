"""The posterior of the Heston model given a symbol's daily returns."""
