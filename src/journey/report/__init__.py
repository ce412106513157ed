"""From stored artifacts to reports/<experiment>/: pictures and tables are views of result.json."""
