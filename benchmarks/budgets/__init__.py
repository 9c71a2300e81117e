"""Ways to spend the same bits: the policy budget, rules from spectra, even spreading and chance."""
