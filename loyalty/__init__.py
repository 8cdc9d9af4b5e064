"""The program behind the card: members, points and the journal of awards. Keyed by store; knows no helpdesk."""
