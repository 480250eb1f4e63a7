"""Update rules that are not the gradient: what stands in its place where it carries no information."""
