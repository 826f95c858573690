"""Who asks: the same for HTTP (from a token) and AMQP (from the user id that the broker verified)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """A user acting in a project. Readers may look, members may act in their project, admins may act anywhere."""

    user_id: str
    project_id: str
    roles: frozenset[str]

    @property
    def is_admin(self) -> bool:
        """Whether every project is theirs to see and change."""
        return "admin" in self.roles

    def has_role(self, role: str) -> bool:
        """Whether they hold `role`; an admin holds every role, a member that of a reader."""
        return self.is_admin or role in self.roles or (role == "reader" and "member" in self.roles)
