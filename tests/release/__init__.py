"""A release as its user gets it: built, checked, installed without the checkout, and tried from an empty folder."""
