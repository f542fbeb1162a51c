"""Pure: findings and policy become a plan."""
