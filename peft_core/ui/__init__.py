"""The page: one file for each tab, one for the form, one for the theme; all of it calls peft_core."""
