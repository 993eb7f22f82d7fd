"""What runs when: jobs and schedules. They select assets by key and group and import none of them."""
