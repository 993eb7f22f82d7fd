"""What reacts: sensors on runs, tables and endpoints. They import no asset."""
