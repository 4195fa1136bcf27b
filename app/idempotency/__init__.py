"""Requests that create something are carried out once, however often they are sent."""
