"""The stages of the data's way, each over any stores. Imports point down, see ARCHITECTURE.md."""
