    ("fastroai.executors.prefect", 5),
    "prefect": ("fastroai.executors.prefect", "fastroai.executors._prefect"),
    "prefect_aws": ("fastroai.executors.prefect", "fastroai.executors._prefect"),
