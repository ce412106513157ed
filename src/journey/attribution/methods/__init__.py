"""Attribution methods: a file for each kind. Their mathematics is in the folder above."""
