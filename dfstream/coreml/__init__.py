"""Core ML: conversion to ``.mlpackage``, its proof without a Mac, and what Core ML would make of a graph."""
