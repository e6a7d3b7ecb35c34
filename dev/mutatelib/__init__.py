"""Mutations: each is a protection taken out, and the test that must notice."""
