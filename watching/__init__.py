"""How the operator watches Tallydesk from outside: a line for each request, metrics, and reports of crashes."""
