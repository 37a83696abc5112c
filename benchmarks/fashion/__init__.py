"""Accuracy, MACs and time on Fashion-MNIST, one protocol for all methods: ``python -m benchmarks.fashion``"""
